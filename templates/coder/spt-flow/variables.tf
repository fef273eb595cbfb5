# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Filled by the collection from the inventory's flow_* values (plugins/plugin_utils/_engine/settings/options.py); every one is sent at each roll-out.

variable "kind" {
  type        = string
  description = "dev, or ci: a workspace that a mere stop deletes."
}

variable "ttl" {
  type        = number
  description = "Seconds that a CI workspace lives which is made without a deadline."
}

variable "contract" {
  type        = string
  description = "Version of the start contract."
}

variable "image" {
  type        = string
  description = "The workspace image by its identity, as role host_images brings it to the nodes."
}

variable "image_hash" {
  type        = string
  description = "The image's content hash."
}

variable "settings_hash" {
  type        = string
  description = "Stands for the settings that workspaces get."
}

variable "nodes" {
  type        = string
  description = "JSON object: addresses of the nodes' engines by the nodes' names; {} means the server's own engine."
}

variable "cpus" {
  type        = string
  description = "Processors that a workspace may use."
}

variable "memory" {
  type        = number
  description = "Memory of a workspace in MiB."
}

variable "kvm" {
  type        = bool
  description = "Whether workspaces get /dev/kvm."
}

variable "docker" {
  type        = bool
  description = "Whether Docker runs inside; takes nodes prepared by role host_docker."
}

variable "runtime" {
  type        = string
  description = "The OCI runtime of workspaces."
}

variable "apparmor" {
  type        = string
  description = "AppArmor profile of workspaces; empty where nodes have no AppArmor."
  # Coder (v2.35.1) takes an empty value for none at all, so one that may be empty needs a default.
  default = ""
}

variable "network" {
  type        = string
  description = "The bridge that workspaces are on."
}

variable "tmpfs" {
  type        = string
  description = "JSON object: options of memory file systems by their paths."
}

variable "environment" {
  type        = string
  description = "JSON object: further values of the start contract."
}
