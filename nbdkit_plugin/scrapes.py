"""/metrics of one disk, out of the process that serves it, for who runs the plugin without the daemon.

The endpoint's thread takes the interpreter only while somebody scrapes, and only reads words that are there
anyway.
"""

import logging

from swaptide.cache import endpoint, engine, exposition, metrics
from swaptide.cache.errors import SetupError

log = logging.getLogger("swaptide.plugin")


def serve(disk: engine.Engine, address: endpoint.Address) -> endpoint.Endpoint | None:
    """Answer at `address` until it is closed; None, and a warning, where that cannot be had."""
    state = disk.open_face()

    def answer(accept: str) -> tuple[str, bytes]:
        sheet = metrics.Sheet(metrics.CATALOGUE)
        metrics.put_build(sheet)
        metrics.put_disk(sheet, state.identity.name, state)
        return exposition.CONTENT_TYPE, exposition.render(sheet)

    try:
        made = endpoint.Endpoint(address, answer)
    except SetupError as error:
        log.warning("metrics not served error=%r", str(error))
        state.close()
        return None
    answer("")  # what a scrape takes belongs to what the process takes by itself
    made.start()
    log.info("metrics served url=%s", f"http://{made.address}/metrics")
    if not address.is_local:
        log.warning("metrics are open to the network, in clear address=%s", address)
    return made
