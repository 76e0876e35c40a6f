"""What is known of single answers, and the rules that choose among them.

rules.py    the rules, a row each
reader.py   what a model says of an answer in one recorded pass: NEX, HES, log-prob, sets
crews.py    the same by several workers
voting.py   what the answers to a prompt say of each other
ranked.py   answers that a ranking kept, with what it measured of them
"""
