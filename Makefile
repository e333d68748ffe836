# Two commands do the work: `make demo` and `make test`. Each first sets up all it needs in .venv
# (ROS 2 wheels, torch, the messages); a second run starts at once.
PYTHON ?=
VENV ?= .venv
ARGS ?=
export PYTHON VENV

.DEFAULT_GOAL := help
.PHONY: help demo test train-debug clean

help: ## show this text
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 16
	@echo "Variables:"
	@echo "  ARGS          passed on, for example: make test ARGS='-k angles'"
	@echo "  PYTHON        interpreter, 3.10 to 3.13 (default: the first suitable one)"
	@echo "  VENV          the environment to use (default: .venv)"
	@echo "  LUSEEL_TORCH_INDEX  package index to take torch from (default: pip's own)"

demo: ## play a scene to the real node and check the sounds and directions it finds
	@tools/venv.sh setup demo
	@tools/venv.sh run python -m luseel_ros.demo $(ARGS)

test: ## run the tests
	@tools/venv.sh setup test
	@tools/venv.sh run python -m pytest test $(ARGS)

train-debug: ## train for a minute on two cores: the whole way, much reduced
	@tools/venv.sh setup train
	@tools/venv.sh run python -m training.train --config debug $(ARGS)

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build install log dist *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
