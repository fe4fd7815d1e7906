<#
.SYNOPSIS
Brings the bridge up to date. 更新。

.DESCRIPTION
Pulls this clone with git, or takes the folder that is given, installs it as install.ps1 does, and starts
the bridge again where its task was on. Configuration, ring, logs and reports stay as they are; ticks
that were not yet published stay in the ring and are published afterwards.

用 git 更新本仓库（或使用指定的目录），像 install.ps1 那样安装；若计划任务是启用的，则重新启动。
配置、ring、日志和报告都保持不变；尚未发布的 tick 留在 ring 中，重启后继续发布。

.PARAMETER Source
Folder of another clone, or of an unpacked release, to install from. 要安装的另一份仓库或解压后的目录。

.PARAMETER NoPull
Installs this clone as it is. 不执行 git pull，直接安装当前内容。

.EXAMPLE
powershell -ExecutionPolicy Bypass -File scripts\windows\update.ps1
#>
[CmdletBinding()]
param(
    [string]$Source = '',
    [switch]$NoPull
)
. (Join-Path $PSScriptRoot 'shared.ps1')

$null = Assert-Installed
$root = Split-Path -Parent (Split-Path -Parent $PSScriptRoot)
if ($Source) {
    $root = (Resolve-Path -LiteralPath $Source).ProviderPath
}
elseif (-not $NoPull) {
    if (-not (Test-Path -LiteralPath (Join-Path $root '.git')) -or -not (Get-Command git -ErrorAction SilentlyContinue)) {
        Stop-Here "$root is no clone, or git is not installed. Unpack the new version elsewhere and name its folder: update.ps1 -Source FOLDER" `
            "$root 不是 git 仓库，或没有安装 git。请把新版本解压到别处，再指定该目录：update.ps1 -Source 目录"
    }
    git -C $root pull --ff-only
    Assert-Exit 'git pull failed; what it says is above' 'git pull 失败，原因见上面的输出'
}

$install = Join-Path $root 'scripts\windows\install.ps1'
if (-not (Test-Path -LiteralPath $install)) {
    Stop-Here "$root does not hold the bridge: $install is missing." "$root 中没有本项目：找不到 $install。"
}
& $install
exit $LASTEXITCODE
