"""Backends that lead requests: what runs when, with which keys, in which numbers.

Which to take:

* **One after the other in one node**: ``Sequential``, written ``S[A,B]``.
* **Keys**: ``Remove`` drops some, ``Keep`` drops all others, ``Copy`` and ``Move`` give values another key.
  ``KeyA2KeyB`` and ``RemoveV0`` are v0's forms of ``Copy`` and ``Remove``; new configurations need neither.
* **The result of a child under another key**: ``Result2Key``. ``Result2Other`` is its older name.
* **One of two**: ``HasKey`` and ``NotHasKey`` look for a key, ``CompareLongKey`` at a number, ``Random`` at
  nothing.
* **More or fewer requests at once than the child takes**: ``Max`` up to a number, ``Range`` in steps,
  ``Parallel`` on several threads, ``FakeInstance`` with copies for different sizes.
* **To another node**: ``Jump`` for the whole request, ``MapReduce`` for each element of a list.
"""
