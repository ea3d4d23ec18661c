"""`edgelm serve`: bundles behind HTTP, one worker process a model.

    config.py       what is served and how; serve.yaml
    frames.py       messages between the two sides, over the worker's stdin and stdout
    worker.py       the worker process: load, check golden answers, then one of
    texts.py          classification and embeddings, a batch at a time
    chats.py          generation, answers that join and leave between steps
    process.py      a worker process, seen from the web process
    waiting.py      requests that wait: bounded in tokens, fair between clients
    lane.py         one served model: its queue, its worker, restarts, new versions
    text_lane.py      batches of texts to the worker
    chat_lane.py      answers to the worker, their pieces back
    refusals.py     every refusal and its HTTP status
    http.py         one request: its body read within limits, its answer written
    gate.py         keys, scopes and header limits, before anything is routed
    keys.py         the file of API keys
    site.py         what the routes answer from
    routes.py       the table of routes
    connection.py   time for a request's head; answers sent in one piece
    api_texts.py    /v1/classify, /v1/embeddings
    api_chat.py     /v1/chat/completions, /v1/completions
    api_infer.py    Open Inference Protocol v2
    api_watch.py    health, models, inventory, metrics, reload
    requests.py     reading of request bodies
    openapi.py      the OpenAPI document
    figures.py      counters and histograms in Prometheus' text format
    log.py          JSON lines; the audit log
    server.py       the web process: uvicorn, signals, drain

The web process loads no engine and no numpy; a worker opens no socket.
"""
