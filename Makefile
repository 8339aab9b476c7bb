# Two commands: `make demo` and `make test`. `make help` lists the rest.
# Every target sets up first, which takes a tenth of a second when nothing has changed.

SHELL := /bin/bash
PYTHON ?= python3
# With ROS 2 Jazzy sourced the packages stand in install/; on a bare machine they are all in .venv.
WORKSPACE := $(if $(ROS_DISTRO),source install/setup.bash && ,)

.PHONY: help setup demo test slow lint workspace clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

setup: ## make this checkout ready to run
	@$(PYTHON) scripts/setup.py

demo: setup ## run the main job; options: WORLD= ROBOTS= MINUTES= SEED=
	@$(WORKSPACE).venv/bin/efm demo $(if $(WORLD),--world $(WORLD)) $(if $(ROBOTS),--robots $(ROBOTS)) \
	    $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

test: setup ## run the tests; ARGS= goes to pytest, for example ARGS="-k safety"
	@$(WORKSPACE).venv/bin/python -m pytest -n 3 --dist loadfile $(ARGS)

slow: setup ## run the tests that train for real
	@$(WORKSPACE).venv/bin/python -m pytest -m slow --timeout 3600 $(ARGS)

lint: setup ## run every check of style, types and spelling
	@.venv/bin/pre-commit run --all-files

workspace: setup ## build and test the workspace with colcon, as a robot's own set-up would
	@scripts/colcon build && scripts/colcon test

clean: ## remove everything that set-up and builds have made
	rm -rf .venv build install log .pytest_cache .mypy_cache .ruff_cache .hypothesis
