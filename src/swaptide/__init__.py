"""swaptide: a swap disk for KVM guests that lives in host RAM and ebbs to disk."""

import logging

__version__ = "0.1.0"

# A library stays silent until its host program configures logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())
