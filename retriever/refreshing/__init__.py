"""``sidstream refresh``: from what people did to a model that has learnt from it, in steps that can be stopped and go on."""
