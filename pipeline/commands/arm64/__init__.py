"""`pocketnest arm64`: does a run's file answer on ARM64 processors as it does here?"""
