"""A Singer tap for a CSV file of orders: `tap_orders.py FILE`. A broken row ends it with 3."""

import csv
import sys

import singer

LOGGER = singer.get_logger()
STREAM = "orders"
SCHEMA = {"type": "object", "properties": {"id": {"type": "integer"}, "item": {"type": "string"}}}


def main():
    """Write the messages for each row of the file, and at its end the state."""
    singer.write_schema(STREAM, SCHEMA, ["id"])
    last = None
    with singer.metrics.record_counter(STREAM) as counter, open(sys.argv[1], newline="") as rows:
        for row in csv.DictReader(rows):
            last = int(row["id"])
            singer.write_record(STREAM, {"id": last, "item": row["item"]})
            counter.increment()
    singer.write_state({STREAM: last})


try:
    main()
except ValueError:
    LOGGER.exception("%s is broken", sys.argv[1])
    sys.exit(3)
