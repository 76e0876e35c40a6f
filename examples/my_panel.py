"""A panel of one's own on the page of `surgeon rank`.

cd examples
surgeon rank ... --panels my_panel:price
"""

from markupsafe import Markup

from surgeon.report import RankingPage, fragment

TABLE = """
<table class="plain">
  <thead><tr><th scope="col">Candidate</th><th scope="col">Tokens per answer</th></tr></thead>
  <tbody>
  {% for candidate in candidates %}
    <tr><th scope="row">{{ candidate.name }}</th>
    <td class="num">{{ "%.0f"|format(candidate.tokens / candidate.responses) }}</td></tr>
  {% endfor %}
  </tbody>
</table>
"""


def price(page: RankingPage) -> Markup:
    """What an answer costs."""
    cheapest = sorted(page.ranking.candidates, key=lambda c: c.tokens / c.responses)
    return fragment(TABLE, candidates=cheapest)
