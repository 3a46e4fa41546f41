"""Results of device services and of other tools, read into the record of a device."""
