<#
.SYNOPSIS
Starts the bridge now and whenever this user logs on. 立即启动，并在当前用户每次登录时自动启动。

.DESCRIPTION
Registers the task "qmt-bridge" of Task Scheduler for this user: at log-on, in the user's own session,
without a time limit, started again when it fails or its window was closed, never twice at a time.

Why a task in your own session and not a service: a service runs as LocalSystem in a session without a
desktop. It has another %USERPROFILE%, and that is where xtquant looks for the terminals that run, so it
would find none; and the terminal itself needs your desktop for its log-in. When nobody is logged on,
there is no terminal to read from either.

在任务计划程序中为当前用户注册任务 "qmt-bridge"：登录时启动，运行在用户自己的会话中，没有时间限制，
失败或窗口被关闭后会再次启动，不会同时运行两个。

为什么是自己会话中的任务而不是服务：服务以 LocalSystem 身份运行在没有桌面的会话里，它的 %USERPROFILE% 不同，
而 xtquant 正是在 %USERPROFILE% 下查找正在运行的终端，所以一个也找不到；终端本身的登录也需要你的桌面。
没有人登录时，也就没有终端可读。

.PARAMETER Off
Ends the bridge and takes the task away. 结束 qmt-windows 并删除该任务。

.EXAMPLE
powershell -ExecutionPolicy Bypass -File scripts\windows\start-at-logon.ps1
#>
[CmdletBinding()]
param(
    [switch]$Off
)
. (Join-Path $PSScriptRoot 'shared.ps1')

if ($Off) {
    $null = Suspend-Bridge
    if (Get-BridgeTask) {
        Unregister-ScheduledTask -TaskName $TaskName -Confirm:$false
    }
    Write-Both 'The bridge is off and no longer starts at log-on.' '已停止，登录时不再自动启动。'
    exit 0
}

$installed = Assert-Installed
$folder = Get-BridgeHome
if (-not (Test-Path -LiteralPath (Join-Path $folder 'qmt.toml'))) {
    Stop-Here 'This machine has not joined a bridge yet. Run join.ps1 first.' '本机尚未接入。请先运行 join.ps1。'
}

$user = "$env:USERDOMAIN\$env:USERNAME"
$action = New-ScheduledTaskAction -Execute $installed -Argument '-m qmt_windows run' -WorkingDirectory $folder
$trigger = New-ScheduledTaskTrigger -AtLogOn -User $user
# Task Scheduler does not take an exit code for a failure. Asked every five minutes, it starts what
# has ended; what runs is left alone (IgnoreNew).
$everyFiveMinutes = New-ScheduledTaskTrigger -Once -At '00:00' -RepetitionInterval (New-TimeSpan -Minutes 5)
$trigger.Repetition = $everyFiveMinutes.Repetition
$principal = New-ScheduledTaskPrincipal -UserId $user -LogonType Interactive -RunLevel Limited
# Priority 4 is a program's usual one; a task's default is lower, for processor and disk.
$settings = New-ScheduledTaskSettingsSet -MultipleInstances IgnoreNew -ExecutionTimeLimit ([TimeSpan]::Zero) `
    -RestartCount 255 -RestartInterval (New-TimeSpan -Minutes 1) -Priority 4 `
    -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -StartWhenAvailable

$null = Suspend-Bridge
$null = Register-ScheduledTask -TaskName $TaskName -Force -Action $action -Trigger $trigger `
    -Principal $principal -Settings $settings -Description 'QMT Bridge: producer and worker beside the QMT terminal'
Start-ScheduledTask -TaskName $TaskName
Write-Both "Started. From now on it starts whenever $user logs on." "已启动。今后 $user 每次登录时都会自动启动。"
exit 0
