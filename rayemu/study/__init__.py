"""Questions that are answered without a cluster: what codecs cost, which plan is best."""
