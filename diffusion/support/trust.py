"""placeholder until merged"""
def vet(*a, **k): return None
def vet_source(*a, **k): return None
