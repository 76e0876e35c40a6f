"""What each verb can be asked to do: one frozen dataclass per verb, and nothing heavy imported.

schema.py     what a settings class is made of
binding.py    names and values -> settings -> a record; the functions of the verbs
sampling.py   how answers are drawn, and what else several verbs share
yaml_text.py  YAML that people type, as values
verbs.py      verb -> its settings, its function, what prints the result
VERB.py       the settings of one verb
"""

from surgeon.settings.binding import Verb, bind, record, value_at, verb
from surgeon.settings.schema import Leaf, leaves, settings

__all__ = ["Leaf", "Verb", "bind", "leaves", "record", "settings", "value_at", "verb"]
