"""The wire: protos, generated stubs in a private descriptor pool, conversions."""
