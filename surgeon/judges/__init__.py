"""Who says where a trace fails, and who writes how the failure is mended.

Both are asked in one way: many questions, a reply each, kept on disk as they come.

    finding.py     what judges and writers are asked, and what they say
    judges.py      who judges: the built-in task's checker, a function, a model at an endpoint
    writers.py     who writes: the same three
    makeup.py      what made-up failures are to be like, and the fixed sentences after a trigger
    docket.py      the questions of a run and the replies so far; a killed run asks the rest
    chat.py        the conversation with an endpoint: JSON of a given shape, or a complaint
    wording.py     what an endpoint is asked with (wording.yaml, or a file like it)
"""
