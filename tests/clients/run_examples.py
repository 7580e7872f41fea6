"""Runs the Python examples of a document, word for word but for where the triggers come from.

Each is compiled as it stands, with top-level `await` allowed, into one namespace with what the examples assume: `Path`,
and a traceback. Prints a line of JSON for each: what it printed itself, and the client's own count so far.
"""

import ast
import asyncio
import contextlib
import inspect
import io
import json
import re
import sys
from pathlib import Path

import grace_client


async def main() -> None:
    text = Path(sys.argv[1]).read_text()
    space = {"Path": Path, "traceback_snippet": 'Traceback (most recent call last):\n  File "x.py"\nImportError: No module named y'}
    for example in re.findall(r"```python\n(.*?)```", text, re.S):
        source = example.replace("from backend.triggers import", "from grace_client.triggers import")
        code = compile(source, "<example>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            result = eval(code, space)
            if inspect.iscoroutine(result):
                await result
        print(json.dumps({"example": example, "said": said.getvalue(), "stats": grace_client.stats()}), flush=True)


asyncio.run(main())
