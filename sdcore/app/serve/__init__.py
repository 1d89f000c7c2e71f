"""The server: one model in memory, one thread that paints, and three ways to ask for a picture.

command.py  `sdcore serve`;  web.py  the application: who may come in, errors, health, metrics
models.py   models by name, one of them loaded;  painter.py  the queue and the thread that paints
asked.py    what a request asks for, as jobs;  watching.py  what is seen while a job is painted
page/       the page;  book.py  /book, which it links to;  native.py  /api
openai_api.py  /v1;  web_ui_api.py, web_ui_lists.py  /sdapi/v1
"""
