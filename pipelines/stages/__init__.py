"""The stages of a sweep: their kinds, their code, and the attempts at running one."""
