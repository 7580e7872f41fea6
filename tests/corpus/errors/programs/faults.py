# Fails in the way that its first argument names. VALUE, USER and PORT differ from run to run.
import asyncio, concurrent.futures, ctypes, json, logging, os, socket, sqlite3, struct, sys, threading

VALUE, NAME, PORT = int(os.environ["VALUE"]), os.environ["NAME"], int(os.environ["PORT"])


def parse(text):
    return int(text)


def lookup(table, key):
    return table[key]


def lookup_again(table, key):
    return table[key]


def key_error():
    lookup({}, f"user-{NAME}")


def key_error_elsewhere():
    lookup_again({}, f"user-{NAME}")


def value_error():
    parse(f"x{VALUE}y")


def index_error():
    [1, 2, 3][VALUE]


def attribute_a():
    parse.missing_a


def attribute_b():
    parse.missing_b


def import_error():
    import no_such_module_a


def import_other():
    import no_such_module_b


def zero():
    return VALUE / 0


def file_missing():
    open(f"/tmp/{NAME}/{VALUE}.json")


def file_denied():
    raise PermissionError(13, "Permission denied", f"/srv/{NAME}.key")


def refused():
    socket.create_connection(("127.0.0.1", 1))


def decode():
    json.loads("{" + "x" * (VALUE % 7 + 1))


def no_table():
    sqlite3.connect(":memory:").execute("select * from users")


def no_column():
    sqlite3.connect(":memory:").execute("select id from (select 1 as b)")


def chained():
    try:
        parse(f"x{VALUE}")
    except ValueError as err:
        raise RuntimeError(f"request {VALUE} of {NAME!r} failed") from err


def chained_other():
    try:
        lookup({}, NAME)
    except KeyError:
        raise RuntimeError(f"request {VALUE} of {NAME!r} failed")


def group():
    raise ExceptionGroup(f"batch {VALUE}", [ValueError(f"bad {VALUE}"), TypeError(f"worse {NAME!r}")])


def group_other():
    raise ExceptionGroup(f"batch {VALUE}", [OSError(5, "Input/output error"), TypeError(f"worse {NAME!r}")])


def multiline():
    raise ValueError(f"schema does not match\n  at row {VALUE}\n  expected: 3 columns\n  found: {VALUE}")


def recursion(n=0):
    return recursion(n + 1)


def syntax():
    exec(compile("def f(:\n  pass\n", "settings.py", "exec"))


def custom():
    class QuotaExceeded(Exception):
        pass

    raise QuotaExceeded(f"{NAME} used {VALUE} of 100 GiB")


def unpack():
    struct.unpack("<Q", b"x" * (VALUE % 7))


def logged():
    logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    try:
        parse(f"x{VALUE}")
    except ValueError:
        logging.exception("job %d failed", VALUE)
    sys.exit(0)


def logged_prefixed():
    # What a container runtime makes of it: a time before each line.
    import datetime, traceback
    try:
        index_error()
    except IndexError:
        for line in traceback.format_exc().splitlines():
            now = datetime.datetime.now(datetime.timezone.utc).isoformat()
            print(f"{now}Z stderr F {line}".replace("+00:00", ""), file=sys.stderr)
    sys.exit(0)


def error_line():
    logging.basicConfig(format="%(asctime)s [%(process)d] %(levelname)s %(name)s - %(message)s")
    logging.error("cannot reach shard %d of %r after %.2f s", VALUE, NAME, VALUE / 7)
    sys.exit(0)


def in_thread():
    thread = threading.Thread(target=value_error, name=f"worker-{VALUE}")
    thread.start()
    thread.join()


def in_pool():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(value_error).result()


def in_task():
    async def job():
        zero()

    asyncio.run(job())


def segfault():
    import faulthandler
    faulthandler.enable()
    ctypes.string_at(0)


def asserts():
    assert VALUE < 0, f"value {VALUE} is not negative"


globals()[sys.argv[1]]()
