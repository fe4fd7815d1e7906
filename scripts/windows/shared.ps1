# What the scripts of this folder share; each of them reads it, and it does nothing by itself.
# 本目录各脚本共用的函数，单独运行没有作用。

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# The name under which Task Scheduler knows the bridge.
$TaskName = 'qmt-bridge'

function Write-Both {
    # Say one thing in both languages.
    param([string]$English, [string]$Chinese)
    Write-Host $English
    Write-Host $Chinese
}

function Stop-Here {
    # Say what is wrong and what to do, and end the script with code 1.
    param([string]$English, [string]$Chinese)
    Write-Host $English -ForegroundColor Red
    Write-Host $Chinese -ForegroundColor Red
    exit 1
}

function Get-BridgeHome {
    # Return the folder of configuration, ring, logs and environment: QMT_HOME, or the usual one.
    if ($env:QMT_HOME) {
        return $env:QMT_HOME
    }
    # A variable that was set by setx a moment ago is not yet in this window's environment.
    $named = [Environment]::GetEnvironmentVariable('QMT_HOME', 'User')
    if ($named) {
        return $named
    }
    return Join-Path $env:LOCALAPPDATA 'qmt-bridge'
}

function Get-BridgePython {
    # Return the path of the environment's Python, whether it is there or not.
    return Join-Path (Join-Path (Get-BridgeHome) 'venv') 'Scripts\python.exe'
}

function Assert-Installed {
    # Return the environment's Python; end the script where install.ps1 has not run yet.
    $python = Get-BridgePython
    if (-not (Test-Path -LiteralPath $python)) {
        Stop-Here "Not installed yet: $python is missing. Run install.ps1 first." `
            "尚未安装：找不到 $python。请先运行 install.ps1。"
    }
    return $python
}

function Assert-Exit {
    # End the script where the program that ran last has failed.
    param([string]$English, [string]$Chinese)
    if ($LASTEXITCODE -ne 0) {
        Stop-Here "$English (exit code $LASTEXITCODE)." "$Chinese（退出码 $LASTEXITCODE）。"
    }
}

function Get-BridgeTask {
    # Return the scheduled task, or nothing.
    return Get-ScheduledTask -TaskName $TaskName -ErrorAction SilentlyContinue
}

function Get-BridgeProcess {
    # Return the processes that use the environment, however they were started.
    $folder = [IO.Path]::GetFullPath((Join-Path (Get-BridgeHome) 'venv')) + '\'
    # An environment's python.exe only starts the real one, which lies elsewhere: it is known by
    # what it runs.
    Get-CimInstance -ClassName Win32_Process | Where-Object {
        ($_.ExecutablePath -and $_.ExecutablePath.StartsWith($folder, [StringComparison]::OrdinalIgnoreCase)) -or
        ($_.Name -like 'python*' -and $_.CommandLine -match '-m qmt_(windows|producer|worker)\b')
    }
}

function Suspend-Bridge {
    # End the bridge, as files in use cannot be replaced. Return whether its task was on.
    $task = Get-BridgeTask
    $wasOn = $false
    $ran = $false
    if ($task) {
        $wasOn = $task.State -ne 'Disabled'
        $ran = $task.State -eq 'Running'
        # Disabled, as the task would start it again in the midst of the installation.
        $null = Disable-ScheduledTask -TaskName $TaskName
    }
    if ($ran) {
        Stop-ScheduledTask -TaskName $TaskName
    }
    $deadline = (Get-Date).AddSeconds(20)
    $left = @(Get-BridgeProcess)
    while ($ran -and $left.Count -gt 0 -and (Get-Date) -lt $deadline) {
        Start-Sleep -Milliseconds 500
        $left = @(Get-BridgeProcess)
    }
    if ($ran) {
        # What its processes started ends a moment after them.
        Start-Sleep -Milliseconds 2000
    }
    if ($left.Count -gt 0) {
        if ($wasOn) {
            $null = Enable-ScheduledTask -TaskName $TaskName
        }
        $ids = ($left | ForEach-Object { $_.ProcessId }) -join ', '
        Stop-Here "The bridge still runs (process $ids). Close its window, then run this again." `
            "qmt-windows 仍在运行（进程 $ids）。请先关闭它的窗口，再重新运行本脚本。"
    }
    return $wasOn
}

function Resume-Bridge {
    # Start the bridge again where its task was on.
    param([bool]$WasOn)
    if ($WasOn) {
        $null = Enable-ScheduledTask -TaskName $TaskName
        Start-ScheduledTask -TaskName $TaskName
        Write-Both 'The bridge was started again.' '已重新启动 qmt-windows。'
    }
}
