{{- /* Restricted Pod Security, and a read-only root file system. */}}
{{- define "steersman.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "steersman.podSecurity" -}}
{{- if .Values.podSecurityContext -}}
{{ toYaml .Values.podSecurityContext }}
{{- else -}}
runAsNonRoot: true
runAsUser: {{ ternary 2000 10001 (eq .Values.accelerator.type "gpu") }}
runAsGroup: 0
fsGroup: 0
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}
{{- end }}

{{- define "steersman.migration" -}}
name: migrate
image: {{ include "steersman.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [steersman, migrate]
env:
  - name: HOME
    value: /tmp
  - name: STEERSMAN_LOG_FORMAT
    value: {{ .Values.server.logFormat }}
  {{- include "steersman.databaseEnv" . | nindent 2 }}
resources:
  requests:
    cpu: 100m
    memory: 256Mi
  limits:
    memory: 1Gi
securityContext:
  {{- include "steersman.containerSecurity" . | nindent 2 }}
volumeMounts:
  - name: home
    mountPath: /var/lib/steersman
  - name: tmp
    mountPath: /tmp
{{- end }}

{{- /* One engine pod: `root`, and `role` engine, leader or worker. */}}
{{- define "steersman.pod" -}}
metadata:
  labels:
    {{- include "steersman.labels" (dict "root" .root "component" (ternary "worker" "engine" (eq .role "worker"))) | nindent 4 }}
    {{- with .root.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include (print .root.Template.BasePath "/configmap.yaml") .root | sha256sum }}
    checksum/secret: {{ include (print .root.Template.BasePath "/secret.yaml") .root | sha256sum }}
    {{- if and .root.Values.monitoring.annotations (ne .role "worker") }}
    prometheus.io/scrape: "true"
    prometheus.io/path: /metrics
    prometheus.io/port: {{ .root.Values.server.port | quote }}
    {{- end }}
    {{- with .root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "steersman.serviceAccount" .root }}
  automountServiceAccountToken: false
  # A Service named vllm would otherwise set VLLM_PORT to a URL.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "steersman.gracePeriod" .root }}
  securityContext:
    {{- include "steersman.podSecurity" .root | nindent 4 }}
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .root.Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .root.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if .root.Values.topologySpreadConstraints }}
    {{- toYaml .root.Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "steersman.selector" (dict "root" .root "component" (ternary "worker" "engine" (eq .role "worker"))) | nindent 10 }}
    {{- end }}
  {{- $link := not .root.Values.model.id }}
  {{- $migrate := and (eq .root.Values.database.migrations "init") (ne .role "worker") }}
  {{- if or $link $migrate }}
  initContainers:
    {{- if $link }}
    # The image's embedded model, where the server looks for it: the volume hides what the image has there.
    - name: model
      image: {{ include "steersman.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      command:
        - sh
        - -c
        - mkdir -p /var/lib/steersman/models && ln -sfn /opt/steersman/models/* /var/lib/steersman/models/
      resources:
        requests:
          cpu: 10m
          memory: 16Mi
        limits:
          memory: 64Mi
      securityContext:
        {{- include "steersman.containerSecurity" .root | nindent 8 }}
      volumeMounts:
        - name: home
          mountPath: /var/lib/steersman
    {{- end }}
    {{- if $migrate }}
    - {{ include "steersman.migration" .root | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  containers:
    - name: steersman
      image: {{ include "steersman.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args:
        {{- include "steersman.args" . | trim | nindent 8 }}
      env:
        {{- include "steersman.env" . | trim | nindent 8 }}
      {{- with .root.Values.server.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      resources:
        {{- include "steersman.resources" .root | nindent 8 }}
      securityContext:
        {{- include "steersman.containerSecurity" .root | nindent 8 }}
      {{- if ne .role "worker" }}
      ports:
        - name: http
          containerPort: {{ .root.Values.server.port }}
      {{- with .root.Values.probes }}
      startupProbe:
        httpGet:
          path: {{ .path }}
          port: http
        periodSeconds: 10
        timeoutSeconds: {{ .timeoutSeconds }}
        failureThreshold: {{ .startupFailureThreshold }}
      readinessProbe:
        httpGet:
          path: {{ .path }}
          port: http
        periodSeconds: {{ .readinessPeriodSeconds }}
        timeoutSeconds: {{ .timeoutSeconds }}
        failureThreshold: 2
      # 200 while the pod drains, which must not be cut short.
      livenessProbe:
        httpGet:
          path: /health
          port: http
        periodSeconds: {{ .livenessPeriodSeconds }}
        timeoutSeconds: {{ .timeoutSeconds }}
        failureThreshold: {{ .livenessFailureThreshold }}
      {{- end }}
      {{- end }}
      {{- if .root.Values.drain.preStopSeconds }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ .root.Values.drain.preStopSeconds }}
      {{- end }}
      volumeMounts:
        {{- include "steersman.mounts" .root | nindent 8 }}
  volumes:
    {{- include "steersman.volumes" . | trim | nindent 4 }}
{{- end }}
