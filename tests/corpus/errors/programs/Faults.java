// Fails in the way that its first argument names. VALUE, NAME and PORT differ from run to run.
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;

public class Faults {
    static final int VALUE = Integer.parseInt(System.getenv("VALUE"));
    static final String NAME = System.getenv("NAME");

    static class QuotaException extends RuntimeException {
        QuotaException(String message) { super(message); }
    }

    static class Handle implements AutoCloseable {
        @Override public void close() { throw new IllegalStateException("close of handle " + VALUE + " failed"); }
    }

    static int parse(String text) { return Integer.parseInt(text); }

    static int pick(List<Integer> list) { return list.get(VALUE); }

    static int pickAgain(List<Integer> list) { return list.get(VALUE); }

    static int depth(int n) { return depth2(n + 1) + 1; }

    static int depth2(int n) { return depth(n + 1) + 1; }

    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "number" -> parse("x" + VALUE);
            case "index" -> pick(new ArrayList<>());
            case "index_elsewhere" -> pickAgain(new ArrayList<>());
            case "none" -> ((String) Map.of().get(NAME)).length();
            case "cast" -> System.out.println((Integer) (Object) NAME);
            case "custom" -> throw new QuotaException("user '" + NAME + "' used " + VALUE + " bytes");
            case "caused" -> {
                try { parse("x" + VALUE); } catch (NumberFormatException err) {
                    throw new IllegalStateException("request " + VALUE + " failed", err);
                }
            }
            case "caused_other" -> {
                try { pick(new ArrayList<>()); } catch (IndexOutOfBoundsException err) {
                    throw new IllegalStateException("request " + VALUE + " failed", err);
                }
            }
            case "suppressed" -> {
                try (Handle handle = new Handle()) { parse("y" + VALUE); }
            }
            case "deep" -> depth(0);
            case "memory" -> {
                List<long[]> all = new ArrayList<>();
                while (true) all.add(new long[1 << 20]);
            }
            case "lambda" -> List.of(VALUE).forEach(n -> parse("z" + n));
            case "future" -> CompletableFuture.supplyAsync(() -> parse("q" + VALUE)).get();
            case "thread" -> {
                Thread thread = new Thread(() -> pick(new ArrayList<>()), "worker-" + VALUE);
                thread.start();
                thread.join();
            }
            case "multiline" -> throw new IllegalArgumentException("schema does not match:\n  row " + VALUE + "\n  of " + NAME);
            case "missing" -> new java.io.FileInputStream("/tmp/" + NAME + "/" + VALUE + ".bin");
            case "class" -> Class.forName("com.example.Missing");
            default -> throw new AssertionError(args[0]);
        }
    }
}
