# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Filled by the collection from the inventory's flow_* values (plugins/plugin_utils/_engine/settings/options.py); every one is sent at each roll-out.

variable "kind" {
  type        = string
  description = "dev, or ci for workspaces that are destroyed when they stop."
}

variable "ttl" {
  type        = number
  description = "TTL in seconds of CI workspaces without a deadline."
}

variable "contract" {
  type        = string
  description = "Version of the workspace agent."
}

variable "image" {
  type        = string
  description = "Tag of the workspace image, which the role host_images copies to the nodes."
}

variable "image_hash" {
  type        = string
  description = "Content hash of the image."
}

variable "settings_hash" {
  type        = string
  description = "Hash of the workspaces' settings."
}

variable "nodes" {
  type        = string
  description = "JSON object: engine addresses by node name; {} means the server's own engine."
}

variable "cpus" {
  type        = string
  description = "CPUs of a workspace."
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
  description = "Whether Docker runs inside; needs nodes set up by the role host_docker."
}

variable "runtime" {
  type        = string
  description = "OCI runtime of workspaces."
}

variable "apparmor" {
  type        = string
  description = "AppArmor profile of workspaces; empty if the nodes have no AppArmor."
  # Coder (v2.35.1) takes an empty value for none at all, so one that may be empty needs a default.
  default = ""
}

variable "network" {
  type        = string
  description = "Bridge network of workspaces."
}

variable "subdomain" {
  type        = bool
  description = "Whether the IDE has an address of its own; takes a server with a wildcard access URL."
}

variable "tmpfs" {
  type        = string
  description = "JSON object: mount options of memory file systems by path."
}

variable "environment" {
  type        = string
  description = "JSON object: additional environment of the workspace agent."
}

variable "presets" {
  type        = string
  description = "JSON list of presets that users can choose: name, repo, ref, description and icon."
  default     = "[]"
}

variable "external_auth" {
  type        = string
  description = "JSON list of ids of the server's providers of external authentication."
  default     = "[]"
}
