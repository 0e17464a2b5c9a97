"""What everything else stands on: cells, nodes, events, ports, encoding, redaction."""
