{{- define "steersman.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "steersman.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "steersman.name" .) .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name (include "steersman.name" .) | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- /* What never changes for a release: selectors of Deployments are immutable. */}}
{{- define "steersman.selector" -}}
app.kubernetes.io/name: {{ include "steersman.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "steersman.labels" -}}
{{ include "steersman.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Pods that answer HTTP: all engine pods, of a multi-node group the leader. */}}
{{- define "steersman.servingSelector" -}}
{{ include "steersman.selector" (dict "root" . "component" "engine") }}
{{- if .Values.multinode.enabled }}
leaderworkerset.sigs.k8s.io/worker-index: "0"
{{- end }}
{{- end }}

{{- define "steersman.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default (printf "%s-%s" $.Chart.AppVersion $.Values.accelerator.type) }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "steersman.routerImage" -}}
{{- with .Values.router.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "steersman.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "steersman.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "steersman.databaseSecret" -}}
{{ .Values.database.existingSecret | default (printf "%s-database" (include "steersman.fullname" .)) }}
{{- end }}

{{- /* "true" where there may be several replicas. */}}
{{- define "steersman.several" -}}
{{- if or (gt (int .Values.replicaCount) 1) .Values.autoscaling.enabled }}true{{ end -}}
{{- end }}

{{- /* The router that runs: `auto` resolved. */}}
{{- define "steersman.router" -}}
{{- if ne .Values.router.type "auto" -}}
{{ .Values.router.type }}
{{- else -}}
{{ ternary "envoy" "none" (eq (include "steersman.several" .) "true") }}
{{- end -}}
{{- end }}

{{- /* "true" where a router's pods stand before the engines. */}}
{{- define "steersman.proxied" -}}
{{- if has (include "steersman.router" .) (list "envoy" "vllm-router") }}true{{ end -}}
{{- end }}

