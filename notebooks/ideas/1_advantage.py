def leave_one_out(group):
    """RLOO: how much better than the mean of the other rollouts; no division by the standard deviation."""
    total = sum(r.reward for r in group)
    return [r.reward - (total - r.reward) / (len(group) - 1) for r in group]
