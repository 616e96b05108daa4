"""Image editing: fill holes and add detail. An edit can be interrupted and resumed."""
