# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# A workspace of spt.flow on Coder: the same image, workspace agent and limits as on every target. The role coder_template uploads it
# with all variables and the file seccomp.json; developers choose only what to clone.

terraform {
  required_version = ">= 1.1"
  required_providers {
    coder = {
      source  = "coder/coder"
      version = ">= 2.15, < 3.0"
    }
    docker = {
      source  = "kreuzwerker/docker"
      version = ">= 3.6, < 5.0"
    }
  }
}

provider "docker" {
  host     = local.engine == "" ? null : local.engine
  ssh_opts = ["-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
}

data "coder_workspace" "me" {}
data "coder_workspace_owner" "me" {}
data "coder_provisioner" "me" {}

locals {
  docs    = "https://github.com/spt-flow/spt.flow/blob/main/docs/coder.md"
  presets = { for preset in jsondecode(var.presets) : preset.name => preset if !local.ci }

  ci    = var.kind == "ci"
  start = data.coder_workspace.me.start_count
  # Stopping a CI workspace destroys all of its resources.
  kept = local.ci ? local.start : 1
  id   = data.coder_workspace.me.id
  name = "spt-flow-${data.coder_workspace.me.id}"

  nodes   = jsondecode(var.nodes)
  names   = sort(keys(local.nodes))
  default = length(local.names) == 0 ? "" : local.names[parseint(substr(replace(local.id, "-", ""), 0, 6), 16) % length(local.names)]
  node    = length(local.names) < 2 ? local.default : data.coder_parameter.node[0].value
  engine  = local.node == "" ? "" : local.nodes[local.node]

  repo = trimspace(data.coder_parameter.repo.value)
  # As on every target, the clone's directory has the workspace's name; in CI that of a developer's workspace.
  asked     = join("", data.coder_parameter.directory[*].value)
  directory = local.asked != "" ? local.asked : local.repo == "" ? "/home/coder" : "/home/coder/${data.coder_workspace.me.name}"

  seed = local.ci ? tobool(data.coder_parameter.seed[0].value) : false

  # Deadline of a CI workspace, never extended: the run's own, else the default TTL.
  deadline = local.ci ? coalesce(trimspace(data.coder_parameter.deadline[0].value), timeadd(timestamp(), "${var.ttl}s")) : ""
  times    = { for name, value in { "spt.flow.created" = timestamp(), "spt.flow.deadline" = local.deadline } : name => value if local.ci }

  labels = {
    "spt.flow.owner"       = data.coder_workspace_owner.me.name
    "spt.flow.workspace"   = data.coder_workspace.me.name
    "spt.flow.repo"        = local.repo
    "spt.flow.kind"        = var.kind
    "spt.flow.contract"    = var.contract
    "spt.flow.coder"       = local.id
    "coder.owner"          = data.coder_workspace_owner.me.name
    "coder.owner_id"       = data.coder_workspace_owner.me.id
    "coder.workspace_id"   = local.id
    "coder.workspace_name" = data.coder_workspace.me.name
  }
}

# Parameters. All have a default, so that one click creates a workspace.

data "coder_parameter" "repo" {
  name         = "repo"
  display_name = "Repository"
  description  = "The Git repository to clone, such as `https://host/team/project.git` or `git@host:team/project.git`. Leave it empty to start without one. [Help](${local.docs})"
  icon         = "/icon/git.svg"
  type         = "string"
  default      = ""
  mutable      = true
  order        = 1
}

data "coder_parameter" "ref" {
  name         = "ref"
  display_name = "Branch, tag or commit"
  description  = "What to check out in a new clone. Leave it empty for the repository's default branch."
  type         = "string"
  default      = ""
  mutable      = true
  order        = 2
}

data "coder_parameter" "dotfiles" {
  name         = "dotfiles"
  display_name = "Dotfiles"
  description  = "Your dotfiles repository. It is installed at each start. Add #branch for a branch other than the default."
  icon         = "/icon/dotfiles.svg"
  type         = "string"
  default      = ""
  mutable      = true
  order        = 3
}

data "coder_parameter" "node" {
  count        = length(local.names) < 2 ? 0 : 1
  name         = "node"
  display_name = "Node"
  description  = "The machine that runs the workspace and keeps its files. You cannot change it later."
  type         = "string"
  default      = local.default
  mutable      = false
  order        = 4
  dynamic "option" {
    for_each = local.names
    content {
      name  = option.value
      value = option.value
    }
  }
}

data "coder_parameter" "deadline" {
  count        = local.ci ? 1 : 0
  name         = "deadline"
  display_name = "Deadline"
  description  = "When the workspace is deleted, such as 2026-01-31T12:00:00Z. Leave it empty for the default time limit."
  type         = "string"
  default      = ""
  mutable      = false
  order        = 5
  validation {
    regex = "^([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)?$"
    error = "A deadline is a time such as 2026-01-31T12:00:00Z."
  }
}

data "coder_parameter" "directory" {
  count        = local.ci ? 1 : 0
  name         = "directory"
  display_name = "Directory"
  description  = "The directory of the clone. Leave it empty for a directory with the workspace's name."
  type         = "string"
  default      = ""
  mutable      = false
  order        = 6
  validation {
    regex = "^(/home/coder/[a-z0-9][a-z0-9-]*)?$"
    error = "The clone must be in a directory of /home/coder."
  }
}

data "coder_parameter" "seed" {
  count        = local.ci ? 1 : 0
  name         = "seed"
  display_name = "Upload"
  description  = "Whether the client uploads the repository instead of the workspace cloning it."
  type         = "bool"
  default      = "false"
  mutable      = false
  order        = 7
}

# Logins at Git hosts that the server keeps for its users. Each is optional, because a public repository needs none, and a client brings its own.
data "coder_external_auth" "git" {
  for_each = toset(jsondecode(var.external_auth))
  id       = each.key
  optional = true
}

# Repositories of the team to choose from; a preset fills in the parameters that it names.
data "coder_workspace_preset" "repository" {
  for_each    = local.presets
  name        = each.key
  description = each.value.description
  icon        = each.value.icon
  parameters  = { for name in ["repo", "ref"] : name => each.value[name] if each.value[name] != "" }
}

resource "coder_agent" "main" {
  os                 = "linux"
  arch               = data.coder_provisioner.me.arch
  connection_timeout = 120

  env = {
    GIT_AUTHOR_NAME     = coalesce(data.coder_workspace_owner.me.full_name, data.coder_workspace_owner.me.name)
    GIT_AUTHOR_EMAIL    = data.coder_workspace_owner.me.email
    GIT_COMMITTER_NAME  = coalesce(data.coder_workspace_owner.me.full_name, data.coder_workspace_owner.me.name)
    GIT_COMMITTER_EMAIL = data.coder_workspace_owner.me.email
  }

  display_apps {
    vscode          = true
    vscode_insiders = false
    web_terminal    = true
    ssh_helper      = true
  }

  metadata {
    key          = "clone"
    display_name = "Clone"
    order        = 1
    # Read a file instead of starting Python: this runs twice a minute in every workspace, and during its start.
    script   = "if test -e /run/spt-flow/steps.json; then sed -n 's/.*\"clone\": {\"state\": \"\\([a-z-]*\\)\".*/\\1/p' /run/spt-flow/steps.json; else echo pending; fi"
    interval = 30
    timeout  = 5
  }

  metadata {
    key          = "kvm"
    display_name = "KVM works"
    order        = 2
    # A device that exists may still run no guest; kvm-ok tries it.
    script   = "if test -w /dev/kvm && { ! command -v kvm-ok || kvm-ok; } >/dev/null 2>&1; then echo yes; else echo no; fi"
    interval = 600
    timeout  = 5
  }

  metadata {
    key          = "image"
    display_name = "Image"
    order        = 3
    # Written once, when the image was built.
    script   = "echo \"$(( ($(date +%s) - $(stat -c %Y /etc/subuid)) / 86400 )) days old\""
    interval = 3600
    timeout  = 5
  }

  # Written by the role host_snapshots on the node.
  metadata {
    key          = "snapshot"
    display_name = "Last snapshot"
    order        = 4
    script       = "cat /var/lib/spt-flow-snapshots/${local.name}-home 2>/dev/null || echo none"
    interval     = 600
    timeout      = 5
  }

  # Users can put a program there that prints the state of their pipeline in one line.
  metadata {
    key          = "ci"
    display_name = "CI pipeline"
    order        = 5
    script       = "if test -x ~/.config/spt-flow/ci-status; then ~/.config/spt-flow/ci-status 2>&1 | head -n 1 | cut -c 1-80; else echo -; fi"
    interval     = 60
    timeout      = 20
  }

  resources_monitoring {
    memory {
      enabled   = true
      threshold = 90
    }
    volume {
      path      = "/home/coder"
      enabled   = true
      threshold = 90
    }
  }
}

# Its output has the workspace agent's events, which clients follow.
resource "coder_script" "start" {
  agent_id     = coder_agent.main.id
  display_name = "spt.flow"
  # The node's proxy says what it had to leave out, such as /dev/kvm; nothing else sets the variable.
  script             = <<-EOT
    test -z "$SPT_FLOW_NOTE" || printf '{"spt_flow": 1, "event": "note", "text": "%s"}\n' "$SPT_FLOW_NOTE"
    exec spt-workspace start
  EOT
  run_on_start       = true
  start_blocks_login = false
}

resource "coder_script" "stop" {
  agent_id     = coder_agent.main.id
  display_name = "spt.flow: stop"
  script       = "exec spt-workspace stop"
  run_on_stop  = true
  timeout      = 28
}

resource "coder_app" "ide" {
  agent_id     = coder_agent.main.id
  slug         = "ide"
  order        = 1
  display_name = "VS Code in the browser"
  icon         = "/icon/code.svg"
  url          = "http://127.0.0.1:8080/?folder=${urlencode(local.directory)}"
  # With its own address the IDE cannot act as its user on the dashboard.
  subdomain = var.subdomain
  share     = "owner"
  healthcheck {
    url       = "http://127.0.0.1:8080/healthz"
    interval  = 5
    threshold = 6
  }
}

# Never pulled: if the image is missing, this fails at once with the command that copies it.
data "docker_image" "workspace" {
  name = var.image

  lifecycle {
    postcondition {
      condition     = self.id != ""
      error_message = "The node does not have the image ${var.image}. Bring it there: ansible-playbook site.yml --tags host_images"
    }
  }
}

resource "docker_volume" "home" {
  count = local.kept
  name  = "${local.name}-home"
  dynamic "labels" {
    for_each = merge(local.labels, local.times, { "spt.flow.part" = "home" })
    content {
      label = labels.key
      value = labels.value
    }
  }
  lifecycle {
    ignore_changes = all
  }
}

resource "docker_volume" "docker" {
  count = local.ci || !var.docker ? 0 : 1
  name  = "${local.name}-docker"
  dynamic "labels" {
    for_each = merge(local.labels, { "spt.flow.part" = "docker", "spt.flow.snapshot" = "no" })
    content {
      label = labels.key
      value = labels.value
    }
  }
  lifecycle {
    ignore_changes = all
  }
}

resource "docker_container" "workspace" {
  count    = local.start
  name     = local.name
  image    = data.docker_image.workspace.id
  hostname = data.coder_workspace.me.name
  user     = "1000:1000"
  runtime  = var.runtime

  entrypoint = ["/usr/bin/tini", "-g", "--", "sh", "-c", replace(coder_agent.main.init_script, "/localhost|127\\.0\\.0\\.1/", "host.docker.internal")]
  command    = []

  cpus        = var.cpus
  memory      = var.memory
  memory_swap = var.memory

  # Unmounting the volume and a clean exit take time; otherwise the container would be killed.
  destroy_grace_seconds = 30
  must_run              = true
  restart               = "no"
  log_driver            = "json-file"
  log_opts              = { "max-size" = "5m", "max-file" = "2" }
  security_opts         = concat(["seccomp=${jsonencode(jsondecode(file("${path.module}/seccomp.json")))}"], var.apparmor == "" ? [] : ["apparmor=${var.apparmor}"])
  # Without raw sockets `ping` needs this.
  sysctls = { "net.ipv4.ping_group_range" = "0 65535" }
  tmpfs   = jsondecode(var.tmpfs)

  env = concat([
    "CODER_AGENT_TOKEN=${coder_agent.main.token}",
    "SPT_FLOW_CONTRACT=${var.contract}",
    "SPT_FLOW_OWNER=${data.coder_workspace_owner.me.name}",
    "SPT_FLOW_WORKSPACE=${data.coder_workspace.me.name}",
    "SPT_FLOW_KIND=${var.kind}",
    "SPT_FLOW_DEADLINE=${local.deadline}",
    "SPT_FLOW_SEED=${local.seed ? "/home/coder/.cache/spt-flow/seed.bundle" : ""}",
    "SPT_FLOW_REPO=${local.repo}",
    "SPT_FLOW_REF=${trimspace(data.coder_parameter.ref.value)}",
    "SPT_FLOW_DIRECTORY=${local.directory}",
    "SPT_FLOW_DOTFILES=${trimspace(data.coder_parameter.dotfiles.value)}",
    "SPT_FLOW_GIT_NAME=${coalesce(data.coder_workspace_owner.me.full_name, data.coder_workspace_owner.me.name)}",
    "SPT_FLOW_GIT_EMAIL=${data.coder_workspace_owner.me.email}",
    "SPT_FLOW_DOCKER=${var.docker ? "on" : "off"}",
    # The server in front authenticates users and stops the workspace.
    "SPT_FLOW_IDE_BIND=127.0.0.1",
    "SPT_FLOW_IDE_AUTH=none",
    "SPT_FLOW_IDLE_STOP=0",
  ], [for name, value in jsondecode(var.environment) : "${name}=${value}"])

  capabilities {
    drop = ["CAP_MKNOD", "CAP_NET_RAW", "CAP_SETFCAP"]
  }

  dynamic "devices" {
    for_each = concat(var.kvm ? ["/dev/kvm"] : [], var.docker ? ["/dev/fuse", "/dev/net/tun"] : [])
    content {
      host_path      = devices.value
      container_path = devices.value
      permissions    = "rw"
    }
  }

  host {
    host = "host.docker.internal"
    ip   = "host-gateway"
  }

  networks_advanced {
    name = var.network
  }

  dynamic "volumes" {
    for_each = merge(
      { for volume in docker_volume.home : "/home/coder" => volume.name },
      { for volume in docker_volume.docker : "/var/lib/spt-flow-docker" => volume.name },
    )
    content {
      container_path = volumes.key
      volume_name    = volumes.value
    }
  }

  volumes {
    volume_name    = "spt-flow-snapshots"
    container_path = "/var/lib/spt-flow-snapshots"
    read_only      = true
  }

  dynamic "labels" {
    for_each = merge(local.labels, local.times, { "spt.flow.settings" = var.settings_hash, "spt.flow.image" = var.image_hash })
    content {
      label = labels.key
      value = labels.value
    }
  }
}

# Data that clients need, also while the workspace is stopped.
resource "coder_metadata" "home" {
  count       = local.kept
  resource_id = docker_volume.home[0].id
  hide        = true
  item {
    key   = "repo"
    value = local.repo
  }
  item {
    key   = "contract"
    value = var.contract
  }
  item {
    key   = "settings"
    value = var.settings_hash
  }
  item {
    key   = "image"
    value = var.image_hash
  }
  item {
    key   = "node"
    value = local.node
  }
  item {
    key   = "directory"
    value = local.directory
  }
  item {
    key   = "deadline"
    value = local.deadline
  }
}
