"""Works on a task of Grace with the official `mcp` package: `stdio GRACE SOCKET`, or `http URL` with $GRACE_HTTP_TOKEN.

Prints what it saw as one JSON document. Used by tests/tasks.rs.
"""

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack

from mcp import Client, StdioServerParameters


async def connect(stack: AsyncExitStack):
    if sys.argv[1] == "stdio":
        server = StdioServerParameters(command=sys.argv[2], args=["--socket", sys.argv[3], "tasks", "mcp"])
        return await stack.enter_async_context(Client(server))
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    headers = {"Authorization": "Bearer " + os.environ["GRACE_HTTP_TOKEN"]}
    http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=60))
    return await stack.enter_async_context(Client(streamable_http_client(sys.argv[2], http_client=http)))


async def main() -> None:
    async with AsyncExitStack() as stack:
        client = await connect(stack)

        async def call(tool: str, **arguments):
            result = await client.call_tool(tool, arguments)
            if result.is_error:
                raise SystemExit(f"{tool}: {result.content}")
            return result.structured_content

        told = {"tools": [tool.name for tool in (await client.list_tools()).tools]}
        told["prompts"] = [prompt.name for prompt in (await client.list_prompts()).prompts]
        claimed = await call("claim_task", agent="official")
        task, token = claimed["task"], claimed["token"]
        told["claimed"] = task["id"]
        resources = (await client.list_resources()).resources
        evidence = next(str(resource.uri) for resource in resources if "/evidence/" in str(resource.uri))
        told["resource"] = (await client.read_resource(evidence)).contents[0].text
        # A server without sessions remembers no claim, so the token goes along.
        held = {"id": task["id"], "token": token}
        await call("heartbeat", **held)
        await call("attach", **held, name="patch", text="-def f(:\n+def f():\n")
        told["state"] = (await call("complete_task", **held, text="closed the parenthesis"))["state"]
        print(json.dumps(told))


asyncio.run(main())
