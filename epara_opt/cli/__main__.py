"""`python -m epara_opt.cli`, for processes that must use this very interpreter."""

from epara_opt.cli import main

main()
