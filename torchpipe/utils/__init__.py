"""Tools for users that nothing else imports; kept under v0's name."""
