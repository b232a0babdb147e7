"""JUnit files of shards and attempts as one. Only ``files`` does I/O; nothing imports torch."""
