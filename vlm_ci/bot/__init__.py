"""The bot: a comment on a pull request becomes GitHub calls. Only ``github`` talks to GitHub and
only ``evidence`` writes files; the rest performs no I/O. Nothing imports torch."""
