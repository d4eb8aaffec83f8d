"""What nbdkit loads: parameters, callbacks, thread states. Imports only swaptide.cache."""
