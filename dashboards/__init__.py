"""What Prometheus and Grafana show of swaptide: built from panels.py by build.py."""
