"""The peers, one class each, written as a careful user of that library would.

`out=` wherever there is one, no copies, the library's own layout, nothing computed twice. Whoever
has no such computation, dtype or layer gives None. Each is optional: its library is imported when
it is made.
"""
