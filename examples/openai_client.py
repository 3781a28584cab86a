"""Serve the embedded model, and ask it with OpenAI's client; `semgrad-guard serve` does the same in a process."""

import threading
import time

from openai import OpenAI

from semgrad_guard.serving.app import application
from semgrad_guard.serving.local import LocalEngine
from semgrad_guard.serving.server import Setup, server

engine = LocalEngine(Setup().worker())
serving = server(application(engine), engine, port=0)  # any free port of this machine
thread = threading.Thread(target=serving.run)
thread.start()
while not serving.started:
    time.sleep(0.01)
port = serving.servers[0].sockets[0].getsockname()[1]

with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
    for question in ("What is the capital of France?", "What is the capital of Zubrovia?"):
        asked = [{"role": "user", "content": question}]
        choice = client.chat.completions.create(model="demo", messages=asked).choices[0]
        record = choice.model_extra["semgrad"]
        print(f"{question} {choice.message.content} ({record['decision']}: {record['reason']})")

    # The draft all the same, with the record to go by.
    extra = {"semgrad": {"policy": "annotate"}}
    choice = client.chat.completions.create(model="demo", messages=asked, extra_body=extra).choices[0]
    print("draft:", choice.message.content, choice.model_extra["semgrad"]["verdict"]["confidence"])

serving.should_exit = True
thread.join()
