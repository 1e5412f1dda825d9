"""Several server processes behind one port: a supervisor accepts connections and spreads them.

``supervisor.py`` runs them; ``member.py`` is one of them as the supervisor sees it, ``membership.py`` what it
knows of itself; ``states.py`` is what both know of each connection.
"""
