"""Score to confidence: profiles, their fitting, and the verdict on an answer."""
