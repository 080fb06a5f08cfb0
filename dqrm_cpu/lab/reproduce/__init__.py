"""The paper's tables and figures as experiments that run: declared, cached, repeated over seeds."""
