"""The server under a load of requests that come whether or not others have been answered."""
