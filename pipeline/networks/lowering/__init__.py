"""Any network's operations, rewritten exactly to the few that every runtime has in int8."""
