"""What modelserve costs, beside a bare ASGI application and the other model servers."""
