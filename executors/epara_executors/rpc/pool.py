"""The descriptor pool of our stubs: apart from the default one, where tritonclient registers `inference` too."""

from __future__ import annotations

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
