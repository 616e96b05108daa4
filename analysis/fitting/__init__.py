"""Power laws fitted to points: laws, objectives, solver, certificate."""
