# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Every target sets up what it needs; environments and other slow things are kept in ~/.cache/spt-flow.
.DEFAULT_GOAL := help
.PHONY: help quickstart venv test test-full lint unit integration molecule test-live sanity bare importer bench docs docs-site seccomp devcontainer runner-dir requirements image image-update build install clean
MAX = tools/venv --dev --end max --
RUN = tools/venv --
export REPO

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: ## Set up this machine and start a workspace: REPO=<url>, by default a small sample; PROFILE=fat builds the whole toolchain
	@SPT_FLOW_PROFILE="$(PROFILE)" tools/quickstart

venv: ## Install Ansible for this checkout, as .venv/bin/ansible-playbook
	@tools/venv --link

test: ## Run what CI runs, at most 38 minutes: checks, unit tests on both ends of ansible-core, integration on a real engine
	@tools/test

test-full: ## Run everything, for hours: the above with long runs, the fat image, a Coder server, molecule and sanity; names what it skipped
	@tools/test --full

lint: ## Run static checks and convention tests
	@$(MAX) tools/lint

unit: ## Run unit tests on both ends of ansible-core
	@status=0; for end in max min; do tools/venv --dev --end $$end -- pytest -q -n 3 -m "not full" tests/unit || status=1; done; exit $$status

integration: ## Run tests on the real Docker engine; TESTS=<path or -k …> selects some
	@tools/quickstart --engine-only && $(MAX) pytest -q -n 2 --dist loadfile $(or $(TESTS),tests/integration) -m "not full"

molecule: ## Test roles in systemd containers: check, converge, check, idempotence, verify; SCENARIO=<name> for one
	@$(MAX) molecule test $(if $(SCENARIO),-s $(SCENARIO),--all)

test-live: ## Run tests with a real Coder server if one is installed; otherwise print what is missing
	@$(MAX) pytest -q -rs tests/live

sanity: ## Run ansible-test sanity on a copy of the tree: CORE=2.19, 2.20 or 2.21 (default), SANITY="--test <name> …"
	@tools/venv --core $(or $(CORE),2.21) -- tools/sanity $(SANITY)

bare: ## Test the tarball with a bare ansible-core: every playbook loads, every name exists, the reset play runs
	@$(MAX) tools/bare

importer: ## Check the tarball with Galaxy's importer
	@$(MAX) tools/importer

bench: ## Measure speed, print each row and write docs/benchmarks.md; BENCH="PART …" for some
	@$(MAX) tests/bench/bench $(BENCH)

docs: ## Update the generated tables of docs/reference and roles, and templates/devcontainer
	@$(MAX) tools/docs

docs-site: ## Build the documentation site into artifacts/docs-site/html; fails on a broken link
	@$(MAX) tools/docs-site

seccomp: ## Update image/seccomp.json
	@tools/seccomp

devcontainer: ## Write .devcontainer/devcontainer.json from workspace settings: DIR=<repository>, IMAGE=<reference>, REPO=<url>
	@SPT_FLOW_REPO="$(REPO)" $(RUN) ansible-playbook playbooks/devcontainer.yml -e devcontainer_path="$(abspath $(or $(DIR),.))" $(if $(IMAGE),-e devcontainer_image="$(IMAGE)")

runner-dir: ## Write a private-data directory for ansible-runner: DIR=<new directory>
	@tools/runner-dir "$(DIR)"

requirements: ## Write the hashes of pinned Python packages after changing a version in requirements/*.txt
	@$(MAX) tools/requirements

image: ## Build the workspace image if it is missing: PROFILE=fat (default), slim, fat-ubuntu-24.04, fat-debian-13, fat-packages
	@$(RUN) ansible-playbook playbooks/image.yml $(if $(PROFILE),-e profile=$(PROFILE))

image-update: ## Write newer versions of the image's contents into image/versions.yml; review the diff
	@$(RUN) tools/image-update

build: ## Build the collection's tarball into artifacts/
	@$(RUN) ansible-galaxy collection build --force --output-path artifacts

install: build ## Install the collection for this user, so that spt.flow.up works in every directory
	@ANSIBLE_CONFIG=$(CURDIR)/playbooks/ansible.cfg $(RUN) ansible-galaxy collection install --force --offline -p "$${ANSIBLE_HOME:-$$HOME/.ansible}/collections" $$(ls -t artifacts/spt-flow-*.tar.gz | head -n 1)

clean: ## Stop quickstart's engine, remove environments and generated files; keep workspaces
	-@tools/quickstart --engine-stop
	@rm -rf .venv artifacts .pytest_cache .mypy_cache .ruff_cache .hypothesis $${XDG_CACHE_HOME:-~/.cache}/spt-flow/venv
