"""`pocketnest device`: a run's files on a phone that is connected by adb."""
