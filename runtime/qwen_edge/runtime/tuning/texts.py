"""Texts to measure accuracy with: prose, code, data, other languages, a conversation.

They only have to be text of the kinds that people use a model for; how well a model knows them
does not matter. Written for this purpose.
"""

PROSE = """\
The ferry leaves the harbour at ten past six, when the mist still lies between the islands. Most of
the passengers are on their way to work; they know one another, nod, and read. Behind the last buoy
the wind comes round to the west and the boat begins to roll a little. Water is densest at about
four degrees, so in autumn the surface sinks as it cools, and warmer water rises in its place until
the whole lake has the same temperature. Only then can it freeze. That is why deep lakes keep open
longer than ponds, and why fish survive the winter below the ice.
"""

CODE = """\
def merge_intervals(intervals):
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged

assert merge_intervals([(1, 3), (2, 6), (8, 10)]) == [[1, 6], [8, 10]]
"""

DATA = """\
{"order": 4711, "customer": {"name": "M. Okafor", "city": "Leeds"}, "lines": [
  {"item": "bolt M8x40", "count": 250, "price": 0.12}, {"item": "washer 8 mm", "count": 500,
  "price": 0.03}], "total": 45.0, "paid": false, "due": "2026-12-01"}
"""

LANGUAGES = """\
Der Zug nach Hamburg fährt heute von Gleis sieben und hat etwa zwanzig Minuten Verspätung.
El mercado abre a las ocho, pero el pescado fresco suele agotarse antes de las nueve.
今天下午有雨，请记得带伞。会议改到三点半，在二楼的大会议室。
"""

CONVERSATION = """\
Question: A train covers 180 km in two and a half hours. How fast is it on average?
Answer: The average speed is the distance divided by the time: 180 km / 2.5 h = 72 km/h.
Question: And how long does it take for 300 km at that speed?
Answer: 300 km / 72 km/h is about 4.17 hours, which is 4 hours and 10 minutes.
"""

# Scored are the last ones, so it is these that have to be of several kinds.
TEXTS = (PROSE, CODE, LANGUAGES, DATA, CONVERSATION)
