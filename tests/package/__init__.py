"""The packages on clean releases of Debian; `make package-test`."""
